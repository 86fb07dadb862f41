"""The pictured worlds: scenes, questions about them with exact answers, and worked reasoning."""
