"""What `burnish VERB` does with its words: arguments to a call of the API to a printed page. No logic lives here."""
