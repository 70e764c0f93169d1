"""The pages of the report: what each shows, as plain data for the templates."""
