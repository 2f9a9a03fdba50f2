"""The codert command and the scripts: options, one library call, printing."""
