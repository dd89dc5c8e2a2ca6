VERSION = "version 2"
