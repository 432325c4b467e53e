"""The console: pages for operators and customers, made on the server from the rows that the API answers from."""
