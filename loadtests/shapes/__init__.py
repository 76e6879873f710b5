"""Load shapes: locust files to give beside the main one, such as `-f locustfile.py,shapes/step.py`.

Each file holds one shape, because locust uses the shape that it finds.
"""
