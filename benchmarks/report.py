"""placeholder"""


def write(results, folder):
    pass
