"""What happens while a model trains, and to the files that it leaves."""
