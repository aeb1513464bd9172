"""The gallery of concepts: its words and plurals, finding them in captions, and mining one."""
