"""What is saved and shown of an explanation: its record, its figure, its report. Imports evaluation."""
