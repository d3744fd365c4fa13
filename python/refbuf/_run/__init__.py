"""What `python -m refbuf run` is made of: how a program is started, and how it ends.

What a program can see is as under `python`, but for what the command's help lists.

Exceptions that the program does not handle leave through all of our frames, so that
the interpreter does what it does at its end: exit statuses, death by SIGINT, -i. Only
then are our frames taken out of the traceback (`tracebacks`), which knows them by this
folder: all code that calls the program's is in it.

Little is imported here, and once the program's own modules are found first only what
`python` imports there, too: what is loaded before the program starts, its own modules of
the same names cannot replace.
"""
