if True:
    FILES = {}
