const fs = require("fs");

const folder = fs.existsSync("src") ? "src/built" : "built";
fs.mkdirSync(folder, { recursive: true });
fs.writeFileSync(`${folder}/main.js`, `console.log("built by node ${process.version}");\n`);
