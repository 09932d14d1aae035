"""The type checker that the import hook of conftest.py puts around every function of the package."""

from beartype import BeartypeConf, beartype

typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float, as Python says
