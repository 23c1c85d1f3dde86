/** A process that opens an image, locks it for reading, says so, and keeps it until it is killed. */

import { lockForReading } from "../../../src/storage/image-lock.ts";
import { LocalFile } from "../../../src/storage/local-file.ts";

const path = process.env["IMAGE"] ?? "";
lockForReading(LocalFile.open(path, "read-only"));
process.stdout.write("locked\n");
setInterval(() => undefined, 1000);
