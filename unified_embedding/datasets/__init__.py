"""The public stand-in data: fetched, prepared and described by one manifest (`make data`)."""
