"""The LRP engine. Imports torch and nothing else of weight; knows no files, no images, no command line."""
