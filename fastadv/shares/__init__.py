"""Class shares: how much of a language's text is of each class, known, counted or estimated."""
