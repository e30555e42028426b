"""Figures, tables and the report: reads only the tables that the evaluation wrote, and the volumes it shows."""
