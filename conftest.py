"""What comes before the tests' own settings, which import byheart."""

from tests.checking import install

install("byheart")
