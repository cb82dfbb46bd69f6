"""How plans and sessions are shown: pictures, the report page, text in a terminal."""
