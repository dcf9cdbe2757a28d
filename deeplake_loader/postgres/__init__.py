"""Stores whose catalog is a PostgreSQL database. psycopg is imported here and nowhere else."""
