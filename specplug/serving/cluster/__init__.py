"""Several replicas of the server behind one address, on a Ray cluster.

An ingress takes requests whole, sends each to a replica, and to another one if the first is lost
before anything of its answer was passed on. :mod:`specplug.serving.ray` puts it together.
"""
