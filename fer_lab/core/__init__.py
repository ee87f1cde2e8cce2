"""The ground floor: labels, records, configuration, plug-ins, errors. Imports nothing else of fer_lab."""
