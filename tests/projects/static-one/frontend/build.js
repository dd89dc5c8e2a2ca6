const fs = require("fs");

fs.mkdirSync("built", { recursive: true });
fs.writeFileSync("built/main.js", `console.log("built by node ${process.version}");\n`);
