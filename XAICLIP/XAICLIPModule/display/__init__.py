"""How an explanation looks: colours, surfaces, tables and layouts."""
