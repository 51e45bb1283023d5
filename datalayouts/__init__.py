"""From the forms in which people have their data to a `segdata.layouts.Layout`: one module a form."""
