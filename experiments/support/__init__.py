"""What the commands share: run folders, figures and reports."""
