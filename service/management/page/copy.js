// What was just asked, ready to run.

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const absolute = (request) => new URL(request.path, document.baseURI).href;
const MEDIA = (request) => request.file.type;

export const FORMS = {
  curl: (request) =>
    request.file
      ? `curl --data-binary @image -H 'Content-Type: ${MEDIA(request)}' ${quote(absolute(request))}`
      : `curl ${quote(absolute(request))}`,
  Python: (request) =>
    "import requests\n\n" +
    (request.file
      ? `with open("image", "rb") as image:\n    response = requests.post(${JSON.stringify(absolute(request))}, data=image, headers={"Content-Type": "${MEDIA(request)}"})\n`
      : `response = requests.get(${JSON.stringify(absolute(request))})\n`) +
    "print(response.json(), response.headers[\"Cache-Status\"])",
  fetch: (request) =>
    (request.file
      ? `const response = await fetch(${JSON.stringify(absolute(request))}, { method: "POST", body: image, headers: { "Content-Type": "${MEDIA(request)}" } });\n`
      : `const response = await fetch(${JSON.stringify(absolute(request))});\n`) + "console.log(await response.json(), response.headers.get(\"Cache-Status\"));",
};
