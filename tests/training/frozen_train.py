"""`facelt train` with batch norm's statistics frozen and a signal at each of its starts by torchrun.

    frozen_train.py FOLDER NUMBER@STEPS,... words of the command ...

The last rank sends itself the signal of that number after so many steps; the next start takes the next of the list.
"""
