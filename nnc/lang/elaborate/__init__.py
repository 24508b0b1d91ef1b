"""From syntax tree to Graph. One set of rules serves both the generic check of every definition
(sizes are names, calls are typed by signature) and the building of exports (calls are inlined).
"""
