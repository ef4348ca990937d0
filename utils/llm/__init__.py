"""Access to language models behind one seam; an adapter a vendor, each importing its SDK when it is first used."""
