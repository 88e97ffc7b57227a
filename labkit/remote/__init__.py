"""A machine elsewhere, reached by ssh: tunnel brings its server here, copy_back its evidence."""
