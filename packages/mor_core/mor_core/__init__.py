"""What MoR's services share. The base needs neither torch nor redis; streams come with the extra ``streams``."""

__version__ = "0.1.0"
