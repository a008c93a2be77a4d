"""Helpers of several test modules: image files and tables, processes, small disks, small problems to train on."""
