"""What several test modules use: images and tables to write, processes, disks, problems to learn."""
