"""The experience library's parts: connection, rows, similarity, outcomes, runs, the commit of one trading cycle.

`data_pipeline.experience_library_postgres` is the documented face of it. SQL of the library stands here and nowhere else.
"""
