"""What every stage uses: the output folder, devices, threads. Imports no stage but in type annotations."""
