"""A ``Choice`` goes in; one document comes out, as JSON, text and a page. Numbers are rounded only here."""
