"""What the `backshan` command does: one module for each of its subcommands, and what they share."""
