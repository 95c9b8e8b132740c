"""A ``Choice`` becomes one document, and the document becomes JSON, text and a page. Only here are numbers rounded."""
