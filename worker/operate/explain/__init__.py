"""`sluice jobs explain`: facts from the database, rules over them, and the report that they make."""
