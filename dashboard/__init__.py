"""The Streamlit dashboard: quality against size and speed, gates and items; it writes nothing."""
