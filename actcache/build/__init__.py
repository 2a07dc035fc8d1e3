"""The build: data, engine and store meet here."""
