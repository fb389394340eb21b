"""What an engine must hold before it is installed, and the figures that say so."""
