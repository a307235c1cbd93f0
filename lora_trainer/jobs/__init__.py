"""What page, REST, command line and txt2img script ask for, and the lines it waits in."""
