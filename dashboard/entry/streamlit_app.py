"""What Streamlit runs from the top for every viewer and click; it lies alone on purpose.

A folder called ``pages`` beside the script would be Streamlit's older kind of navigation, and the first
address that a fresh server is asked for would stay blank unless it is ``/``.
"""

from dashboard.app import main

main()
