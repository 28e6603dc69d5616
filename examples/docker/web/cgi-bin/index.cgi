#!/bin/sh
# The page. `counter` is the name of the other service.
visit=$(wget -q -O - http://counter:8000/cgi-bin/next)
printf 'Content-Type: text/html\r\n\r\n'
echo "<h1>Hello from a container in a sandbox</h1><p>This is visit $visit.</p>"
