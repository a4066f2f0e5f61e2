"""The command line: one file a command. Parses, prints and exits; everything else lives in the other rooms."""
