"""What a person may set: settings of a run, their schema, their presets."""
