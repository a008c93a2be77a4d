"""What every other package uses: errors, files, random numbers, names of objects, and the types the engine works on."""
