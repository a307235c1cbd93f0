"""What our code uses of the WebUI's package ``modules`` (v1.10.1, commit 82a973c0), on the small checkpoint.

The names, arguments and the order of calls are the WebUI's, which ``tests/webui/test_fake.py`` holds against its source
where that is at hand; line numbers are of its files. What is drawn is computed by a real, small model.
"""
