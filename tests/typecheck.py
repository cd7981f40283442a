"""The checker that holds annotations and tensor shapes to their word while tests run."""

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int will do where a float is asked for
